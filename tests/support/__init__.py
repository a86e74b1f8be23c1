"""What several tests make: videos, weights, runs, servers."""
