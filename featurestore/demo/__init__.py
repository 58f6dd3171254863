"""The demonstration: a year of New York flights and weather, from dataframes to a trained model."""

from featurestore.demo.entry import run

__all__ = ["run"]
