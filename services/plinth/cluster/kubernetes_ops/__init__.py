"""What an operator does to a release on Kubernetes: look, scale, roll out, drain, read logs."""
