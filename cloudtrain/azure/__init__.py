"""All that speaks to Azure, through the SDK; one module per resource."""
