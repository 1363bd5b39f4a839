"""The role that holds the datasets: one outbound socket, and work for the router."""
