"""Annotation formats: reading them as they are, finding out which one a folder has, writing them."""
