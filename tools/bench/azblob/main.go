// Command azblob is a yardstick of make bench: it loads storage with azblob alone, with HEADs or with uploads of one buffer. It
// reads the account and the identity from the signer's environment variables.
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
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"golang.org/x/sync/errgroup"
)

func main() {
	head := flag.Bool("head", false, "send HEADs instead of uploads")
	users := flag.Int("users", 1, "number of blobs, user-0/cat and following")
	conns := flag.Int("conns", 8, "requests in flight")
	size := flag.Int("size", 10<<20, "size of an upload in bytes")
	duration := flag.Duration("duration", time.Second, "duration of the load")
	flag.Parse()
	if err := measure(*head, *users, *conns, *size, *duration); err != nil {
		fmt.Fprintln(os.Stderr, "azblob:", err)
		os.Exit(1)
	}
}

// transport returns a transport with the signer's settings. It dials loopback for names under .localhost (RFC 6761
// section 6.3), which Go's resolver does not know.
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
	if err := one(ctx, 0); err != nil { // fetches the token and opens a connection
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	var n atomic.Int64
	began := time.Now()
	for range conns {
		g.Go(func() error {
			for time.Since(began) < duration {
				if err := one(ctx, n.Add(1)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]float64{"n": float64(n.Load()), "seconds": time.Since(began).Seconds()})
}
