"""What a run is: typed configuration, validation and closed-form estimates. Never imports torch."""
