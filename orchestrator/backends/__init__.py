"""Clusters that trials run on."""
