"""What is known of a sample's true margin: tangents, bounds from below, estimates."""
