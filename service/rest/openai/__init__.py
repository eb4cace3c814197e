"""`POST /v1/embeddings` as OpenAI has it, with pictures as several others have them."""
