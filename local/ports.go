package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
)

// checkPorts returns an error for each port that cannot be used or that two settings share.
func (c settings) checkPorts(ctx context.Context) error {
	ports := []struct {
		variable string
		port     int
	}{
		{"FRONTEND_PORT", c.FrontendPort},
		{"FRONTEND_OPS_PORT", c.FrontendOpsPort},
		{"SIGNER_PORT", c.SignerPort},
		{"SIGNER_OPS_PORT", c.SignerOpsPort},
		{"STORAGE_PORT", c.StoragePort},
	}
	if c.AccountURL != "" {
		ports = ports[:4]
	}
	used := map[int]bool{c.PrometheusPort: true}
	for _, p := range ports {
		used[p.port] = true
	}
	var errs []error
	variables := map[int]string{}
	for _, p := range ports {
		if other, ok := variables[p.port]; ok {
			errs = append(errs, fmt.Errorf("%s and %s are both %d: change one", other, p.variable, p.port))
			continue
		}
		variables[p.port] = p.variable
		if err := free(ctx, p.port); err != nil {
			errs = append(errs, fmt.Errorf("port %d %w: set another with %s", p.port, err, suggest(ctx, p.variable, p.port, used)))
		}
	}
	return errors.Join(errs...)
}

// Suggested ports are below 32768, where the ports start that Linux assigns to connections.
const (
	firstSuggested  = 10_000
	suggestionRange = 20_000
)

// suggest returns variable with a free port in place of port, such as SIGNER_PORT=10001. It skips the ports in used and adds the new one.
func suggest(ctx context.Context, variable string, port int, used map[int]bool) string {
	for i := range suggestionRange {
		p := firstSuggested + (max(port, 0)+i)%suggestionRange
		if !used[p] && free(ctx, p) == nil {
			used[p] = true
			return fmt.Sprintf("%s=%d", variable, p)
		}
	}
	return variable
}

// free returns nil if local can listen on port of 127.0.0.1, and no other program listens on port of ::1, to which localhost may resolve.
func free(ctx context.Context, port int) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err == nil {
		_ = l.Close()
	} else if !errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("cannot be used (%w)", err)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		if conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port))); err == nil {
			_ = conn.Close()
			return errors.New("is in use")
		}
	}
	if err != nil {
		// A connection has this local port, or had it and is in TIME-WAIT.
		return errors.New("is the local port of a connection and becomes free a minute after the connection ends")
	}
	return nil
}
