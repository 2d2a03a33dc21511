"""Names and presence across servers: what servers tell each other, and the directory that each of them keeps."""
