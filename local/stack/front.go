package stack

import (
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
)

// Front returns a handler that serves the account in plain HTTP to clients with a signed URL.
//
// It replaces the Host header of each request, so that signatures stay valid, and streams the responses. Other requests get 403,
// except CORS preflight requests, which carry no credentials. Two rules replace checks that Azurite lacks:
//   - The Authorization header is removed: Azurite does not verify the signature of a bearer token.
//   - Copies of other blobs get 403: Azurite copies from an unsigned source of the same account.
func (st *Storage) Front() (http.Handler, error) {
	target, err := url.Parse(st.URL)
	if err != nil {
		return nil, fmt.Errorf("parsing the account's URL: %w", err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host
			r.Out.Host = target.Host // its first label is the account
			r.Out.Header.Del("Authorization")
		},
		Transport:     st.http.Transport,
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "the storage emulator does not answer: "+err.Error(), http.StatusBadGateway)
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodOptions && r.URL.Query().Get("sig") == "":
			reject(w, "AuthenticationFailed", "The URL has no signature (sig=). This port serves signed URLs only: get one from the public API with GET /cat/{user}.")
		case len(r.Header.Values("X-Ms-Copy-Source")) > 0:
			reject(w, "CannotVerifyCopySource", "This port does not copy blobs (x-ms-copy-source). Upload the content.")
		default:
			proxy.ServeHTTP(w, r)
		}
	}), nil
}

// reject answers 403 in the form of Azure's error responses.
func reject(w http.ResponseWriter, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("X-Ms-Error-Code", code)
	w.WriteHeader(http.StatusForbidden)
	_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>%s</Code><Message>%s</Message></Error>`, code, message)
}
