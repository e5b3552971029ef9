"""What each tenant may ask for at a time and in a minute, over all gateways together."""
