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
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
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
	// checkLimit is the time limit of a check, which makes two attempts.
	checkLimit = 13 * time.Second
	// tryTimeout is less than half of it. So an error tells what the network did, and not that the time was up.
	tryTimeout = 6 * time.Second
	// totalLimit is the time limit of all checks except the deletion of the test picture.
	totalLimit = 50 * time.Second

	// maxClockDelay is how far the clock may be behind storage's before the check fails: short links would expire at once.
	maxClockDelay = 5 * time.Minute
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
	report
	failed  map[string]error // why checks are skipped that need a check that failed or was skipped, by its name
	notes   []string         // of the current check
	tokens  *identity.Tokens
	storage *storage.Client
	keys    *signing.Keys
	store   *blobstore.Store

	noToken, noAnswer error          // why checks are skipped that need the federated token, or storage
	user              signerapi.User // of the test picture
	picture           signerapi.Info
	stored            bool // storage may have the test picture
}

// testUserPrefix begins the name of the test picture's user. The rest is random, so no user has that name.
const testUserPrefix = "cats-api-doctor-"

// testPicture is what the media type check needs of a PNG of one pixel.
const testPicture = "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01"

// Run makes all checks and writes each result to out when its check ends. It returns true if all checks passed. It takes about
// a minute at most. It deletes its test picture even if ctx is canceled.
func Run(ctx context.Context, opts Options, out io.Writer) (healthy bool) {
	ctx, cancel := context.WithTimeout(ctx, totalLimit)
	defer cancel()
	log, reg := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	r := &run{Options: opts, report: report{out: out, count: map[string]int{}}, failed: map[string]error{}}
	r.tokens = identity.New(identity.Options{Settings: opts.Identity, Transport: opts.Transport}, log, reg)
	client, err := storage.New(storage.Options{
		Settings: opts.Storage, Credential: r.tokens, Transport: opts.Transport,
		Retry: &policy.RetryOptions{MaxRetries: 1, TryTimeout: tryTimeout, RetryDelay: 200 * time.Millisecond, MaxRetryDelay: 2 * time.Second},
	}, log, reg)
	if err == nil {
		slots := ratelimit.NewPools("signer", 0, reg).New("uploads", 1)
		r.storage, r.keys = client, signing.New(opts.Signing, client, 0, log, reg)
		r.store = blobstore.New(blobstore.Options{
			Limits:  picture.Limits{MaxPictureSize: picture.Size(len(testPicture)), AcceptedTypes: []string{"image/png"}, MaxPixels: 1},
			Storage: client, Keys: r.keys, Uploads: slots, Chunked: slots,
		}, log, reg)
	}
	noAccount := config.Require(err == nil && opts.Storage.Validate() == nil, "the settings of storage are not valid")
	r.subject()
	r.settings()
	r.checkIdentity(ctx)
	r.checkStorage(ctx, noAccount)
	r.check(ctx, "clock", cmp.Or(noAccount, r.noAnswer), r.clock)
	if opts.Callers.AuthenticationOn() {
		r.check(ctx, "callers", nil, r.callers)
	}
	return r.end()
}

func (r *run) checkIdentity(ctx context.Context) {
	noFile := config.Require(r.Identity.TokenFile != "", "AZURE_FEDERATED_TOKEN_FILE is not set")
	noIdentity := config.Require(r.Identity.Validate() == nil, "the settings of the identity are not valid")
	if r.Identity.Credential != identity.Default {
		r.check(ctx, "token file", noFile, r.tokenFile)
	}
	r.check(ctx, "exchange", cmp.Or(noIdentity, r.noToken), r.exchange)
}

func (r *run) checkStorage(ctx context.Context, noAccount error) {
	r.check(ctx, "key", cmp.Or(noAccount, r.failed["exchange"]), r.key)
	r.check(ctx, "put", cmp.Or(noAccount, r.failed["exchange"], r.noAnswer), r.put)
	noLink := cmp.Or(r.failed["put"], r.failed["key"])
	r.check(ctx, "link", noLink, r.link)
	if noLink == nil && r.Signing.LinkBaseURL != "" {
		r.check(ctx, "link base", nil, r.linkBase)
	}
	if noLink == nil && r.DirectUploads {
		r.check(ctx, "copy", nil, r.copy)
	}
	if r.stored {
		r.check(context.WithoutCancel(ctx), "delete", nil, r.delete)
	}
}

// check makes a check, unless there is a reason to skip it or ctx is done, and writes its lines. do returns what works, or an
// error, which may be a [warning].
func (r *run) check(ctx context.Context, name string, skipReason error, do func(context.Context) (string, error)) {
	if ctx.Err() != nil {
		skipReason = errors.New("the doctor was interrupted, or its time was up")
	}
	r.failed[name] = errors.New("the check " + name + " did not pass")
	if skipReason != nil {
		r.line(skip, name, "skipped: "+skipReason.Error())
		return
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	r.notes = nil
	works, err := do(ctx)
	if err == nil {
		r.line(ok, name, works)
		delete(r.failed, name)
	} else {
		r.problem(name, cause(err))
	}
	for _, n := range r.notes {
		r.note(n)
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
		r.line(ok, "settings", fmt.Sprintf("container %s of %s", r.Storage.Container, r.Storage.AccountURL))
	} else {
		for fault := range strings.SplitSeq(r.Faults.Error(), "\n") {
			r.problem("settings", errors.New(fault))
		}
	}
	if r.Callers.AnonymousAccess {
		r.note("authentication is off (ANONYMOUS_ACCESS=true): every client can store, read, replace and delete every picture")
	}
}

func (r *run) tokenFile(context.Context) (string, error) {
	works, notes, err := checkTokenFile(r.Identity)
	r.notes = notes
	if errors.Is(err, errNoToken) {
		r.noToken = errNoToken
	}
	return works, err
}

func (r *run) exchange(ctx context.Context) (string, error) {
	token, err := r.tokens.Fetch(ctx)
	return fmt.Sprintf("got a token for Blob Storage, for %v", left(token.ExpiresOn)), err
}

func (r *run) key(ctx context.Context) (string, error) {
	end, err := r.keys.Fetch(ctx)
	if _, answered := errors.AsType[*storage.ResponseError](err); err != nil && !answered {
		r.noAnswer = errors.New("storage does not answer")
	}
	r.noteRole(err, "Storage Blob Delegator", "")
	return fmt.Sprintf("got a user delegation key, for %v", left(end)), err
}

// put stores the test picture. The upload does not end with ctx: the deletion could reach storage before it.
func (r *run) put(ctx context.Context) (works string, err error) {
	if r.user, err = signerapi.ParseUser(testUserPrefix + rand.Text()); err != nil {
		return "", err
	}
	r.picture, err = r.store.Put(ctx, r.user, strings.NewReader(testPicture), signerapi.PutOptions{Size: int64(len(testPicture))})
	e, answered := errors.AsType[*storage.ResponseError](err)
	r.stored = !answered || e.Status >= http.StatusInternalServerError
	r.noteRole(err, "Storage Blob Data Contributor", "/blobServices/default/containers/"+r.Storage.Container)
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

// testURLTTL is the lifetime of the test picture's signed URLs.
const testURLTTL = 5 * time.Minute

// read returns an error unless a signed URL at base, the account's URL or LinkBaseURL, returns the test picture without a token.
func (r *run) read(ctx context.Context, base string) error {
	url, err := r.keys.ReadURL(base, r.Storage.PictureBlob(r.user), testURLTTL)
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
	url, err := r.keys.ReadURL(r.Storage.AccountURL, r.Storage.PictureBlob(r.user), testURLTTL)
	if err == nil {
		_, err = r.store.CopyFrom(ctx, r.user, blobstore.Source{URL: url, Info: r.picture, Mark: testUserPrefix}, signerapi.Preconditions{})
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

func (r *run) clock(ctx context.Context) (string, error) {
	ahead, err := r.keys.ClockAhead(ctx)
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
	c := auth.New(auth.Options{Settings: r.Callers, Client: r.Transport}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	works := fmt.Sprintf("tokens of %s for %s can be verified; their claim %s is the user", r.Callers.Issuer, r.Callers.Audience, r.Callers.UserClaim)
	return works, c.Fetch(ctx)
}

// noteRole adds the command that assigns role if err says that the identity lacks it. The scope of the role is the storage
// account's resource ID followed by scope.
func (r *run) noteRole(err error, role, scope string) {
	e, answered := errors.AsType[*storage.ResponseError](err)
	if !answered || e.Code != "AuthorizationPermissionMismatch" || r.Identity.ClientID == "" {
		return
	}
	account, _, _ := strings.Cut(strings.TrimPrefix(r.Storage.AccountURL, "https://"), ".")
	r.notes = append(r.notes, fmt.Sprintf(`az role assignment create --assignee %s --role "%s" --scope "$(az storage account show --name %s --query id --output tsv)%s"`,
		r.Identity.ClientID, role, account, scope))
}

// cause returns the reason for an error of the API, without the API's error code.
func cause(err error) error {
	if e, ok := errors.AsType[*apierror.Error](err); ok && e.Unwrap() != nil {
		return e.Unwrap()
	}
	return err
}
