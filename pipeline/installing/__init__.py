"""What an install is made of: order, plan, staging, activation; then verifying and removing."""
