"""What people look at: pictures of predictions."""
