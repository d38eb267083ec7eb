package attacks

import (
	"net/http"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// reached sends a request with this Host header, as a page of the same origin does.
func reached(t *testing.T, method, url, host string) harness.Response {
	t.Helper()
	body := map[string]string{http.MethodPut: string(harness.OtherPicture)}[method]
	return harness.Send(t, method, url, body, "Host", host, "Origin", "http://"+host, "Sec-Fetch-Site", "same-origin",
		"Cats-Contract", "1", "X-Ms-Blob-Type", "BlockBlob")
}

// After DNS rebinding, a page sends requests with the DNS name of its own origin to any listener of the machine.
func TestRebindingPagesReachNoListener(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: map[string]string{"ALLOWED_HOSTS": "cats.example.com,other.example"}})
	prometheus := harness.StartPrometheus(t, sys) + "/api/v1/query?query=up"
	harness.Put(t, sys, "x", harness.Cat)
	picture, _ := harness.Link(t, sys, "x", "")
	upload := harness.NewUploadSession(t, sys, "x", int64(len(harness.Cat)))
	for _, row := range harness.Table(t, "listeners.txt", "{frontend}", sys.URL, "{frontend ops}", sys.FrontendOps,
		"{signer}", sys.SignerAPI, "{signer ops}", sys.SignerOps, "{picture}", picture, "{upload}", upload.URL, "{id}", upload.ID,
		"{storage}", harness.Stack(t).FrontURL, "{cluster}", harness.Stack(t).Cluster.URL(), "{prometheus}", prometheus) {
		for _, host := range []string{
			"evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example:80",
			"localhost.localdomain", "Evil.Example.", "x.cats.example.com",
		} {
			if a := reached(t, row[0], row[1], host); a.StatusCode != http.StatusMisdirectedRequest {
				t.Errorf("%q with Host %s: %d %.100s; want 421", row, host, a.StatusCode, a.Body)
			}
		}
	}
	harness.WantPicture(t, sys, "x", harness.Cat)
	for _, host := range []string{"localhost:8080", "127.0.0.1", "[::1]:80", "192.0.2.7", "cats.localhost"} {
		for _, url := range []string{sys.SignerAPI + "/v1/link?user=x", sys.FrontendOps + "/metrics", prometheus} {
			reached(t, "GET", url, host).Want(t, 200)
		}
		reached(t, "PUT", sys.URL+"/cat/x", host).Want(t, 200)
	}
	for _, host := range []string{"cats.example.com", "OTHER.example:8080"} {
		reached(t, "PUT", sys.URL+"/cat/x", host).Want(t, 200)
	}
}
