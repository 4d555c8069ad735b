"""The data sources that come with the package, one a module. `data_sources` imports all of them."""
