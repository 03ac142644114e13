"""The embedded Azure: a service with Azure's URLs, states and refusals, whose VMs are processes of this machine."""
