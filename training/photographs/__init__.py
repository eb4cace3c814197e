"""An encoder made of pretrained networks and closed-form heads, for photographs."""
