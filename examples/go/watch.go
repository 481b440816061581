package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tasks "taskservice.example/gen/taskservice/v1"
)

const (
	shortestPause = 100 * time.Millisecond
	longestPause  = 10 * time.Second
)

// watch prints each change, beginning with the tasks that match. The file has the token of the last change, with
// which the watch resumes after an interruption of the service or of this program.
func watch(ctx context.Context, client tasks.TaskServiceClient, file, filter string) error {
	pause := shortestPause
	for {
		token, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		received, err := follow(ctx, client, file, &tasks.WatchTasksRequest{
			Filter: filter, ResumeToken: string(token), SendInitialTasks: len(token) == 0,
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case len(token) > 0 && isTokenRefused(err):
			if err := os.Remove(file); err != nil { // Begin anew, with the tasks as they are.
				return err
			}
		case !isTemporary(err):
			return err
		}
		if received {
			pause = shortestPause
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(rand.Int63n(int64(pause)))):
		}
		if pause *= 2; pause > longestPause {
			pause = longestPause
		}
	}
}

// follow prints changes until the stream ends, and tells whether there were any.
func follow(ctx context.Context, client tasks.TaskServiceClient, file string, request *tasks.WatchTasksRequest) (bool, error) {
	stream, err := client.WatchTasks(ctx, request)
	if err != nil {
		return false, err
	}
	for received := false; ; received = true {
		change, err := stream.Recv()
		if err != nil {
			return received, err
		}
		if change.Task != nil {
			fmt.Println(strings.TrimPrefix(change.Type.String(), "TYPE_"), change.Task.Title)
		}
		if err := keep(file, change.ResumeToken); err != nil {
			return received, err
		}
	}
}

// keep replaces the file atomically. The initial tasks have no token: they are sent again as a whole.
func keep(file, token string) error {
	if token == "" {
		return nil
	}
	if err := os.WriteFile(file+".new", []byte(token), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// isTokenRefused tells whether the token is too old, or of another watch or key.
func isTokenRefused(err error) bool {
	for _, violation := range violations(err) {
		if violation.Field == "resume_token" {
			return true
		}
	}
	return status.Code(err) == codes.OutOfRange
}

// isTemporary tells whether a watch that ended with this error can be resumed.
func isTemporary(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Canceled, codes.Aborted, codes.DeadlineExceeded, codes.ResourceExhausted:
		return true
	}
	return err == io.EOF || reason(err) == "CREDENTIALS_EXPIRED"
}
