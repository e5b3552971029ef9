"""Preferences over REST, and live answers that become preference tasks."""
