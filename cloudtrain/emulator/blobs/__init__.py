"""The blob service of the embedded Azure's storage accounts: the protocol that azure-storage-blob speaks, over files.

Protocol: learn.microsoft.com/rest/api/storageservices/blob-service-rest-api, and what the SDK sends and reads.
"""
