"""The models and metadata of the Brain Encoding Response Generator, formerly NED and NEST."""
