// Package doctor checks, with the signer's own code, the settings, the identity and the storage account of the signer. It
// reports for each whether it works and what to do if it does not. It listens on no port, so it can run beside the signer.
package doctor

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/version"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/picture"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/auth"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/identity"
	"cats.example/signer/internal/signing"
	"cats.example/signer/internal/storage"
)

const (
	checkLimit = 13 * time.Second // of a check, which makes two attempts
	totalLimit = 50 * time.Second // of all checks except the deletion of the test picture
	// tryTimeout is less than half of the timeout of a check or a call. So an error tells what the network did, and not that the
	// time was up.
	tryTimeout = 4500 * time.Millisecond
	// maxClockDelay is how far the clock may be behind storage's before the check fails: short links would expire at once.
	maxClockDelay = 5 * time.Minute
	indent        = "                  " // of the lines below that of a check
	// testUserPrefix begins the name of the test picture's user. The rest is random, so no user has that name.
	testUserPrefix = "cats-api-doctor-"
	// testPicture is what the media type check needs of a PNG of one pixel.
	testPicture = "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01"
)

// Options are the signer's settings.
type Options struct {
	Faults        error // validation errors of the settings, one a line
	Identity      identity.Settings
	Storage       storage.Settings
	Signing       signing.Settings
	DirectUploads bool
	Callers       auth.Settings
	Transport     *http.Client // without a credential
}

// run is one run of all checks.
type run struct {
	Options
	out     io.Writer
	count   map[string]int   // of checks, by mark: ok, warn, fail or skip
	failed  map[string]error // why checks that need a check, or something else, are skipped, by its name
	notes   []string         // of the current check
	tokens  *identity.Tokens
	storage *storage.Client
	keys    *signing.Keys
	store   *blobstore.Store
	user    signerapi.User // of the test picture
	picture signerapi.Info
	stored  bool // storage may have the test picture
}

// Run makes all checks and writes each result to out when its check ends. It returns true if all checks passed. It takes about
// a minute at most. It deletes its test picture even if ctx is canceled.
func Run(ctx context.Context, opts Options, out io.Writer) (healthy bool) {
	ctx, cancel := context.WithTimeout(ctx, totalLimit)
	defer cancel()
	r := &run{Options: opts, out: out, count: map[string]int{}, failed: map[string]error{
		"identity": config.Require(opts.Identity.Validate() == nil, "the settings of the identity are not valid"),
	}}
	r.failed["account"] = config.Require(errors.Join(r.open(), opts.Storage.Validate()) == nil, "the settings of storage are not valid")
	r.subject()
	r.settings()
	if r.Identity.Credential != identity.Default {
		r.check(ctx, "token file", r.tokenFile)
	}
	r.check(ctx, "exchange", r.exchange, "identity", "token")
	r.check(ctx, "key", r.key, "account", "exchange")
	r.check(ctx, "put", r.put, "account", "exchange", "answer")
	r.check(ctx, "link", r.link, "put", "key")
	signs := r.failed["put"] == nil && r.failed["key"] == nil
	if signs && r.Signing.LinkBaseURL != "" {
		r.check(ctx, "link base", r.linkBase)
	}
	if signs && r.DirectUploads {
		r.check(ctx, "copy", r.copy)
	}
	if r.stored {
		r.check(context.WithoutCancel(ctx), "delete", r.delete)
	}
	r.check(ctx, "clock", r.clock, "account", "answer")
	if opts.Callers.AuthenticationOn() {
		r.check(ctx, "callers", r.callers)
	}
	return r.end()
}

// open makes what the checks work with. It makes no call.
func (r *run) open() error {
	log, reg := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	r.tokens = identity.New(r.Identity, r.Transport, tracing.Provider{}, log, reg)
	client, err := storage.New(storage.Options{
		Settings: r.Storage, Credential: r.tokens, Transport: r.Transport,
		Retry: &policy.RetryOptions{MaxRetries: 1, TryTimeout: tryTimeout, RetryDelay: 200 * time.Millisecond, MaxRetryDelay: 2 * time.Second},
	}, log, reg)
	if err != nil {
		return err
	}
	slots := ratelimit.NewPools("signer", 0, reg).New("uploads", 1)
	r.storage, r.keys = client, signing.New(r.Signing, client, 0, log, reg)
	r.store = blobstore.New(blobstore.Options{
		Limits:  picture.Limits{MaxPictureSize: picture.Size(len(testPicture)), AcceptedTypes: []string{"image/png"}, MaxPixels: 1},
		Storage: client, Keys: r.keys, Uploads: slots, Chunked: slots,
	}, log, reg)
	return nil
}

// check makes a check, unless something that it needs has failed or ctx is done, and writes its lines. do returns what works, or
// an error, which may be a [warning].
func (r *run) check(ctx context.Context, name string, do func(context.Context) (string, error), needs ...string) {
	var reason error
	for _, need := range needs {
		reason = cmp.Or(reason, r.failed[need])
	}
	if ctx.Err() != nil {
		reason = errors.New("the doctor was interrupted, or its time was up")
	}
	r.failed[name] = errors.New("the check " + name + " did not pass")
	if reason != nil {
		r.line("skip", name, "skipped: "+reason.Error())
		return
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	r.notes = nil
	works, err := do(ctx)
	if err == nil {
		r.line("ok", name, works)
		delete(r.failed, name)
	} else {
		r.problem(name, cause(err))
	}
	for _, n := range r.notes {
		r.write(indent + n)
	}
}

// subject writes the pod, its version and its identity. During a rollout, pods with different ones run.
func (r *run) subject() {
	pod := "none: not in Kubernetes"
	if os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		pod, _ = os.Hostname()
	}
	r.write("pod         " + pod)
	r.write(fmt.Sprintf("version     %s (revision %s)", cmp.Or(version.Version, "unknown"), cmp.Or(version.Revision, "unknown")))
	r.write("client ID   " + cmp.Or(r.Identity.ClientID, "not set"))
	r.write("tenant      " + cmp.Or(r.Identity.TenantID, "not set"))
	r.write("")
}

func (r *run) settings() {
	if r.Faults == nil {
		r.line("ok", "settings", fmt.Sprintf("container %s of %s", r.Storage.Container, r.Storage.AccountURL))
	} else {
		for fault := range strings.SplitSeq(r.Faults.Error(), "\n") {
			r.problem("settings", errors.New(fault))
		}
	}
	if r.Callers.AnonymousAccess {
		r.write(indent + "authentication is off (ANONYMOUS_ACCESS=true): every client can store, read, replace and delete every picture")
	}
}

// tokenFile checks the federated token, and notes its claims for comparison with the identity's federated credential. It does not
// verify the signature: Entra ID does.
func (r *run) tokenFile(context.Context) (string, error) {
	path, audience := r.Identity.TokenFile, r.Identity.Audience()
	content, err := r.Identity.FederatedToken()
	if err != nil {
		r.failed["token"] = errors.New("there is no federated token")
		return "", err
	}
	var claims jwt.Claims
	algorithms := []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512} // of Kubernetes
	token, err := jwt.ParseSigned(strings.TrimSpace(content), algorithms)
	if err != nil || token.UnsafeClaimsWithoutVerification(&claims) != nil || claims.Expiry == nil {
		return "", fmt.Errorf("%s does not hold a signed JSON Web Token with an expiry; fix: AZURE_FEDERATED_TOKEN_FILE must name the projected service-account token", path)
	}
	bound, advice := os.Getenv("AZURE_KUBERNETES_TOKEN_PROXY") != "", "a federated credential of the identity must have exactly these three values"
	if bound {
		advice = "identity bindings exchange this token; no federated credential has to match it"
	}
	r.notes = []string{
		fmt.Sprintf("issuer    %.300s", claims.Issuer), fmt.Sprintf("subject   %.300s", claims.Subject),
		fmt.Sprintf("audience  %.300s", strings.Join(claims.Audience, ", ")), advice,
	}
	if err := claims.ValidateWithLeeway(jwt.Expected{}, 0); err != nil {
		return "", fmt.Errorf("%s: %w; fix: does the kubelet renew it, and is the node's clock right", path, err)
	}
	if !bound && !slices.Equal(claims.Audience, jwt.Audience{audience}) {
		return "", warning{fmt.Errorf("%s has another audience than %s, which AZURE_AUTHORITY_HOST implies; "+
			"fix: set it in the token's volume, or give the federated credential the token's audience", path, audience)}
	}
	return fmt.Sprintf("%s, for %v", path, time.Until(claims.Expiry.Time()).Round(time.Second)), nil
}

func (r *run) exchange(ctx context.Context) (string, error) {
	token, err := r.tokens.Fetch(ctx)
	return fmt.Sprintf("got a token for Blob Storage, for %v", time.Until(token.ExpiresOn).Round(time.Second)), err
}

func (r *run) key(ctx context.Context) (string, error) {
	end, err := r.keys.Fetch(ctx)
	if _, answered := errors.AsType[*storage.ResponseError](err); err != nil && !answered {
		r.failed["answer"] = errors.New("storage does not answer")
	}
	return fmt.Sprintf("got a user delegation key, for %v", time.Until(end).Round(time.Second)), err
}

// put stores the test picture. The upload does not end with ctx: the deletion could reach storage before it.
func (r *run) put(ctx context.Context) (works string, err error) {
	r.user, _ = signerapi.ParseUser(testUserPrefix + rand.Text()) // always valid
	r.picture, err = r.store.Put(ctx, r.user, strings.NewReader(testPicture), signerapi.PutOptions{Size: int64(len(testPicture))})
	e, answered := errors.AsType[*storage.ResponseError](err)
	r.stored = !answered || e.Status >= http.StatusInternalServerError
	return "stored the test picture " + r.Storage.PictureBlob(r.user), err
}

func (r *run) link(ctx context.Context) (string, error) {
	return "a signed URL returns the same bytes, without a credential", r.read(ctx, r.Storage.AccountURL)
}

func (r *run) linkBase(ctx context.Context) (string, error) {
	if err := r.read(ctx, r.Signing.LinkBaseURL); err != nil {
		text, _, _ := strings.Cut(cause(err).Error(), "; fix: ")
		return "", warning{fmt.Errorf("%s: %s; fix: try a link from outside; LINK_BASE_URL need not be reachable from inside the cluster", r.Signing.LinkBaseURL, text)}
	}
	return "a signed URL at " + r.Signing.LinkBaseURL + " returns the same bytes", nil
}

// read returns an error unless a signed URL at base, the account's URL or LinkBaseURL, returns the test picture without a token.
func (r *run) read(ctx context.Context, base string) error {
	url, err := r.keys.ReadURL(base, r.Storage.PictureBlob(r.user), maxClockDelay)
	if err != nil {
		return err
	}
	var content []byte
	_, err = r.storage.Probe(ctx, url, func(ctx context.Context, client *blob.Client) error {
		resp, err := client.DownloadStream(ctx, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		content, err = io.ReadAll(io.LimitReader(resp.Body, int64(len(testPicture))+1))
		return err
	})
	if err == nil && string(content) != testPicture {
		return errors.New("a signed URL returns other bytes than were stored; fix: something between this pod and storage answers in its place")
	}
	return err
}

// copy makes the test picture a copy of itself.
func (r *run) copy(ctx context.Context) (string, error) {
	url, err := r.keys.ReadURL(r.Storage.AccountURL, r.Storage.PictureBlob(r.user), maxClockDelay)
	if err == nil {
		_, err = r.store.CopyFrom(ctx, r.user, url, r.picture, testUserPrefix, signerapi.Preconditions{})
	}
	return "storage copies within the account, as the commit of a direct upload does", err
}

// delete deletes the test picture, which storage may have although the upload failed.
func (r *run) delete(ctx context.Context) (string, error) {
	err := r.store.Delete(ctx, r.user, signerapi.Preconditions{})
	if err != nil && !errors.Is(err, apierror.ErrNotFound) {
		return "", fmt.Errorf("the test picture may be left behind, delete it: %s in the container %s: %w", r.Storage.PictureBlob(r.user), r.Storage.Container, cause(err))
	}
	return "deleted the test picture", nil
}

// clock compares the clock with storage's. It needs no token: storage may reject the request, and its response has a date
// nevertheless.
func (r *run) clock(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, r.Storage.AccountURL, nil)
	if err != nil {
		return "", err
	}
	resp, err := r.Transport.Do(req)
	if err != nil {
		return "", err
	}
	_ = resp.Body.Close()
	ahead, err := signing.ClockAhead(resp.Header.Get("Date"))
	if err != nil {
		return "", err
	}
	err = signing.ClockError(ahead)
	if err != nil && ahead <= signing.ToleratedSkew && ahead >= -maxClockDelay {
		err = warning{err}
	}
	return fmt.Sprintf("within %v of storage's", ahead.Abs().Truncate(time.Second)+time.Second), err
}

// callers fetches the configuration and the keys of the issuer of callers' tokens.
func (r *run) callers(ctx context.Context) (string, error) {
	c := auth.New(r.Callers, r.Transport, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	return fmt.Sprintf("tokens of %s for %s can be verified; their claim %s is the user", c.Issuer, c.Audience, c.UserClaim), c.Fetch(ctx)
}

// cause returns the reason for an error of the API, without the API's error code.
func cause(err error) error {
	if e, ok := errors.AsType[*apierror.Error](err); ok && e.Unwrap() != nil {
		return e.Unwrap()
	}
	return err
}

// warning is an error with which the signer works.
type warning struct{ error }

var (
	// secret matches a token and the signature of a signed URL. No error should hold one; the report redacts them nevertheless.
	secret = regexp.MustCompile(`eyJ[\w.-]+|(?i)sig(=|%3D)[^&\s"]+`)
	// control matches a character with which a claim or a response could begin a line of the report.
	control = regexp.MustCompile(`\p{Cc}`)
)

func (r *run) write(line string) {
	fmt.Fprintln(r.out, secret.ReplaceAllString(control.ReplaceAllString(line, " "), "[secret]"))
}

// line writes the line of a check.
func (r *run) line(mark, check, text string) {
	r.count[mark]++
	r.write(fmt.Sprintf("%-4s  %-10s  %s", mark, check, text))
}

// problem writes that a check failed, or its warning, and below it what to do.
func (r *run) problem(check string, err error) {
	mark := "fail"
	if _, ok := errors.AsType[warning](err); ok {
		mark = "warn"
	}
	text, fix, _ := strings.Cut(err.Error(), "; fix: ")
	r.line(mark, check, text)
	if fix = cmp.Or(fix, networkFix(text)); fix != "" {
		r.write(indent + "fix: " + fix)
	}
}

// end writes the last line. It returns true if no check failed or was skipped.
func (r *run) end() bool {
	text := fmt.Sprintf("all works; warnings: %d", r.count["warn"])
	if r.count["skip"] > 0 {
		text = "some checks were skipped"
	}
	if r.count["fail"] > 0 {
		text = fmt.Sprintf("failed checks: %d; the first one often causes the others", r.count["fail"])
	}
	r.write("")
	r.write(text)
	return r.count["fail"]+r.count["skip"] == 0
}

// networkFix returns what to do about a network error with that text, "" for other errors. It matches the text, because the SDK's
// error of a failed token exchange wraps no other error.
func networkFix(text string) string {
	for _, n := range [][2]string{
		{"proxyconnect|Proxy Authentication", "the proxy of HTTPS_PROXY rejects this connection; NO_PROXY lists the hosts that need no proxy"},
		{"no such host|server misbehaving|lookup ", "the name does not resolve: check its spelling, the cluster's DNS, and that a private endpoint's DNS zone is linked to the cluster's network"},
		{"x509:|tls:", "the certificate is not trusted: a proxy that intercepts TLS needs its CA in SSL_CERT_FILE; a private endpoint must be reached by the account's own name"},
		{"connection refused|timeout|deadline exceeded|unreachable|no route to host|connection reset|EOF", "nothing answers on this port: look at the NetworkPolicy's egress, the firewall and routes of the cluster's subnet, and HTTPS_PROXY"},
	} {
		if regexp.MustCompile(n[0]).MatchString(text) {
			return n[1]
		}
	}
	return ""
}
