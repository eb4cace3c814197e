"""`POST /v1/embeddings` as OpenAI has it, with images as several others have them."""
