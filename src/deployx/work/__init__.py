"""The spine: tasks become executions, executions deployments, deployments device runs, and each of them ends."""
