"""HTTP/1.1 as text: requests, responses, URLs."""
