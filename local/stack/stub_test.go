package stack

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"testing"
)

// The test binary is also the program that the tests of processes start: STUB
// says how it behaves.
func TestMain(m *testing.M) {
	switch behaviour := os.Getenv("STUB"); behaviour {
	case "":
		os.Exit(m.Run())
	case "broken":
		fmt.Fprintln(os.Stderr, "the setting COLOUR is wrong")
		os.Exit(3)
	default:
		os.Exit(stub(behaviour))
	}
}

// stub listens as a frontend and as a signer, answers with its environment, and
// ends with code 0 on SIGTERM unless it is "stubborn". A "parent" starts another.
func stub(behaviour string) int {
	stop := make(chan os.Signal, 1)
	if behaviour == "stubborn" {
		signal.Ignore(syscall.SIGTERM)
	} else {
		signal.Notify(stop, syscall.SIGTERM)
	}
	if behaviour == "parent" {
		dir := os.Getenv("DIR")
		log, err := newLog("child", dir+"/child.log", nil)
		if err != nil {
			return 1
		}
		child := stubProcess(log, dir, "good")
		if err := child.Start(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if err := os.WriteFile(dir+"/pid", []byte(strconv.Itoa(child.Pid())), 0o600); err != nil {
			return 1
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if behaviour == "unready" {
			http.Error(w, "no key", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /env", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(os.Environ())
	})
	log := json.NewEncoder(os.Stderr)
	for listener, variable := range map[string]string{"public": "LISTEN_ADDRESS", "api": "LISTEN_ADDRESS", "ops": "OPS_ADDRESS"} {
		address := os.Getenv(variable)
		if address == "" {
			continue
		}
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		go func() { _ = http.Serve(l, mux) }()
		_ = log.Encode(map[string]string{"msg": "listening", "listener": listener, "address": l.Addr().String()})
	}
	<-stop
	_ = log.Encode(map[string]string{"msg": "stopped"})
	return 0
}

// newStub returns a stub that has not been started.
func newStub(t *testing.T, behaviour string) *Process {
	t.Helper()
	dir := t.TempDir()
	log, err := newLog("stub", dir+"/stub.log", nil)
	if err != nil {
		t.Fatal(err)
	}
	p := stubProcess(log, dir, behaviour)
	t.Cleanup(func() {
		p.Kill()
		_ = log.close()
	})
	return p
}

func stubProcess(log *Log, dir, behaviour string) *Process {
	return &Process{
		Log: log, name: "stub", path: os.Args[0], dir: dir,
		listeners: map[string]string{"ops": "OPS_ADDRESS"}, listening: listeningJSON,
		env: map[string]string{"STUB": behaviour, "OPS_ADDRESS": "127.0.0.1:0"}, addresses: map[string]string{},
	}
}
