"""Engines that run trials, and the placement in front of them."""
