"""The command line `tasks`, for operators: `pip install 'task-service-client[cli]'`."""
