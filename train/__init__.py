"""Training of alpha-Renyi ensembles; imported as softspec.train. Imports softspec, never softspec.server."""
