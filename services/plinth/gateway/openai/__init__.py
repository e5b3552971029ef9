"""OpenAI's endpoints: requests as its clients write them, answers as they read them."""
