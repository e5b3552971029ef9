"""The REST API's server: its listener, what surrounds every request, probes and bodies."""
