package main

import (
	"context"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/health" // The service config makes gRPC ask each server whether it is ready.
	"google.golang.org/grpc/keepalive"
)

// connect returns a channel to the service. With the service config, gRPC retries calls, waits for a connection,
// sets deadlines, and balances over the ready servers.
func connect() (*grpc.ClientConn, error) {
	config, err := os.ReadFile(setting("TASKS_SERVICE_CONFIG", "gen/service_config.json"))
	if err != nil {
		return nil, err
	}
	options, err := security()
	if err != nil {
		return nil, err
	}
	options = append(options,
		grpc.WithDefaultServiceConfig(string(config)),
		// A lost connection is detected within half a minute.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
	)
	// grpc.NewClient, which newer versions prefer, is not in grpc 1.33.
	return grpc.Dial("dns:///"+setting("TASKS_ADDRESS", "127.0.0.1:50051"), options...)
}

// security returns the options for TLS, if TASKS_CA names a file of certificates, and for the token that the file
// TASKS_TOKEN_FILE has.
func security() ([]grpc.DialOption, error) {
	options := []grpc.DialOption{grpc.WithInsecure()}
	if ca := os.Getenv("TASKS_CA"); ca != "" {
		tls, err := credentials.NewClientTLSFromFile(ca, "")
		if err != nil {
			return nil, err
		}
		options = []grpc.DialOption{grpc.WithTransportCredentials(tls)}
	}
	if file := os.Getenv("TASKS_TOKEN_FILE"); file != "" {
		options = append(options, grpc.WithPerRPCCredentials(tokenFile(file)))
	}
	return options, nil
}

// tokenFile is a file with a JWT. Each call reads it, so that a new token needs no restart.
type tokenFile string

func (file tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(string(file))
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, err
}

// RequireTransportSecurity keeps the token from being sent without TLS.
func (tokenFile) RequireTransportSecurity() bool { return true }

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
