"""What an install does, step by step: order, plan, staging, activation."""
