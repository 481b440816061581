// Command tasks shows how a client of Task Service writes, lists, tells errors apart and watches.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	tasks "taskservice.example/gen/taskservice/v1"
)

const usage = `usage:
  tasks tour                        write a task, and meet two errors
  tasks create COUNT TITLE          create tasks, each exactly once
  tasks list [FILTER]               list all tasks, page by page
  tasks watch TOKEN_FILE [FILTER]   follow changes, across restarts`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	connection, err := connect()
	if err != nil {
		return err
	}
	defer connection.Close()
	client := tasks.NewTaskServiceClient(connection)
	command, arguments := append(arguments, "")[0], append(arguments, "", "", "")[1:]
	switch command {
	case "tour":
		return tour(ctx, client)
	case "create":
		return create(ctx, client, arguments[0], arguments[1])
	case "list":
		return list(ctx, client, arguments[0])
	case "watch":
		return watch(ctx, client, arguments[0], arguments[1])
	}
	return errors.New(usage)
}

// tour creates a task, completes it although another client writes it, and shows what errors tell.
func tour(ctx context.Context, client tasks.TaskServiceClient) error {
	created, err := createTask(ctx, client, &tasks.Task{
		Title: "Send the invoices", Priority: tasks.TaskPriority_TASK_PRIORITY_HIGH, Tags: []string{"billing"},
	})
	if err != nil {
		return err
	}
	fmt.Println("created:", created.Title)

	renamed, err := update(ctx, client, &tasks.Task{Id: created.Id, Title: "Send all invoices"})
	if err != nil {
		return err
	}
	fmt.Println("renamed:", renamed.Title)

	completed := &tasks.Task{Id: created.Id, Status: tasks.TaskStatus_TASK_STATUS_COMPLETED, Etag: created.Etag}
	_, err = update(ctx, client, completed)
	if reason(err) != "ETAG_MISMATCH" {
		return fmt.Errorf("the old etag is refused: %v", err)
	}
	fmt.Println("refused:", reason(err))

	if completed, err = complete(ctx, client, created.Id); err != nil {
		return err
	}
	fmt.Println("completed:", completed.Title)

	_, err = createTask(ctx, client, &tasks.Task{Title: " "})
	for _, violation := range violations(err) {
		fmt.Println("invalid:", violation.Field, violation.Description)
	}
	return nil
}

// createTask creates a task exactly once: the request id makes it safe for gRPC to retry the call.
func createTask(ctx context.Context, client tasks.TaskServiceClient, task *tasks.Task) (*tasks.Task, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return client.CreateTask(ctx, &tasks.CreateTaskRequest{Task: task, RequestId: uuid.NewString()})
}

// update writes the fields that the task has. If it has an etag, the service refuses to overwrite a newer task.
func update(ctx context.Context, client tasks.TaskServiceClient, task *tasks.Task) (*tasks.Task, error) {
	return client.UpdateTask(ctx, &tasks.UpdateTaskRequest{Task: task, RequestId: uuid.NewString()})
}

// complete reads and writes a task until no other client has written it in between.
func complete(ctx context.Context, client tasks.TaskServiceClient, id string) (*tasks.Task, error) {
	for {
		task, err := client.GetTask(ctx, &tasks.GetTaskRequest{Id: id})
		if err != nil {
			return nil, err
		}
		task.Status = tasks.TaskStatus_TASK_STATUS_COMPLETED
		task, err = update(ctx, client, task)
		if reason(err) != "ETAG_MISMATCH" {
			return task, err
		}
	}
}

func create(ctx context.Context, client tasks.TaskServiceClient, count, title string) error {
	number, err := strconv.Atoi(count)
	for i := 1; i <= number && err == nil; i++ {
		_, err = createTask(ctx, client, &tasks.Task{Title: fmt.Sprintf("%s %d", title, i)})
	}
	return err
}

// list prints every task that matches the filter. A page has at most 1000 tasks.
func list(ctx context.Context, client tasks.TaskServiceClient, filter string) error {
	request := &tasks.ListTasksRequest{Filter: filter, PageSize: 100}
	for {
		page, err := client.ListTasks(ctx, request)
		if err != nil {
			return err
		}
		for _, task := range page.Tasks {
			fmt.Println(strings.TrimPrefix(task.Status.String(), "TASK_STATUS_"), task.Title)
		}
		if request.PageToken = page.NextPageToken; request.PageToken == "" {
			return nil
		}
	}
}
