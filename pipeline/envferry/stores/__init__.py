"""Keys and bytes in a directory, in S3 or on a web server."""
