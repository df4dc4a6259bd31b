"""Where the roles run: pools and groups of replicas, placement, launch. The only package that imports Ray."""
