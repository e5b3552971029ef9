"""What `helm test` runs inside a cluster: the platform from outside, and under a shard's death."""
