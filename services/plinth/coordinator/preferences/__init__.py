"""Human preference: tasks, leases, judgements, what they say, and the datasets made of them."""
