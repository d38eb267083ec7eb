// Command straight loads storage with azblob alone, from one process, as a yardstick
// of make bench: with HEADs, or with uploads of one buffer. It reads the signer's
// settings of the account and the identity.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

func main() {
	head := flag.Bool("head", false, "HEADs instead of uploads")
	users := flag.Int("users", 1, "over how many pictures, USER-0/cat and on")
	conns := flag.Int("conns", 8, "at once")
	size := flag.Int("size", 10<<20, "of an upload, in bytes")
	duration := flag.Duration("duration", time.Second, "for how long")
	flag.Parse()
	if err := measure(*head, *users, *conns, *size, *duration); err != nil {
		fmt.Fprintln(os.Stderr, "straight:", err)
		os.Exit(1)
	}
}

// transport returns a transport with the settings of the signer's own. Names under .localhost are loopback addresses
// (RFC 6761 section 6.3); Go's resolver does not know that.
func transport() *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if host, port, err := net.SplitHostPort(address); err == nil && strings.HasSuffix(host, ".localhost") {
				address = net.JoinHostPort("127.0.0.1", port)
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
		Protocols:           protocols,
		MaxIdleConns:        256,
		MaxIdleConnsPerHost: 128,
		DisableCompression:  true,
	}
}

func measure(head bool, users, conns, size int, duration time.Duration) error {
	options := azcore.ClientOptions{Transport: &http.Client{Transport: transport()}}
	identity, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
		ClientOptions: options, DisableInstanceDiscovery: os.Getenv("DISABLE_INSTANCE_DISCOVERY") == "true",
	})
	if err != nil {
		return err
	}
	url := os.Getenv("AZURE_STORAGE_ACCOUNT_URL") + "/" + os.Getenv("STORAGE_CONTAINER")
	client, err := container.NewClient(url, identity, &container.ClientOptions{ClientOptions: options})
	if err != nil {
		return err
	}
	content := make([]byte, size)
	one := func(ctx context.Context, i int64) error {
		if head {
			_, err := client.NewBlobClient(fmt.Sprintf("user-%d/cat", i%int64(users))).GetProperties(ctx, nil)
			return err
		}
		_, err := client.NewBlockBlobClient(fmt.Sprintf("user-%d/cat", i%int64(users))).Upload(ctx, streaming.NopCloser(bytes.NewReader(content)), nil)
		return err
	}
	ctx := context.Background()
	if err := one(ctx, 0); err != nil { // the token, and the first connection
		return err
	}
	var (
		running sync.WaitGroup
		n       atomic.Int64
		failed  atomic.Pointer[error]
		began   = time.Now()
	)
	for range conns {
		running.Go(func() {
			for time.Since(began) < duration && failed.Load() == nil {
				if err := one(ctx, n.Add(1)); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	running.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]float64{"n": float64(n.Load()), "seconds": time.Since(began).Seconds()})
}
