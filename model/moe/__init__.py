"""Mixture-of-experts layers: routing, dispatch, experts."""
