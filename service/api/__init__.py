"""REST, the OpenAI routes, and the page: no logic of answers or of the engine."""
