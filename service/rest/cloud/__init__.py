"""What SageMaker and Vertex AI ask of a container: a health check and one route for everything."""
