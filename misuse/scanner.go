package misuse

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken"
)

// ScannerKeys finds the public keys with which a secret scanner signs its reports.
type ScannerKeys interface {
	// ScannerKey returns the P-256 key named id. An error that is apitoken.ErrNotFound says that there is none; any
	// other one that it cannot be known now, and the report is asked for again.
	ScannerKey(ctx context.Context, id string) (*ecdsa.PublicKey, error)
}

// ScannerOptions are the choices of NewScannerHandler.
type ScannerOptions struct {
	Keys    ScannerKeys                 // nil: NewGitHubKeys(nil)
	Notify  func(context.Context, Leak) // called for each token that was revoked, before the answer; nil: only the audit log
	MaxBody int64                       // bytes; zero: 1 MiB
	Logger  *slog.Logger                // nil: nothing is logged
}

const (
	scannerBody    = 1 << 20
	scannerMatches = 10000 // in one report
	maxKeyID       = 256
	maxTokenText   = 64 << 10
)

// NewScannerHandler takes the reports of GitHub's secret scanning partner program: POST of a JSON array of
// {"token", "type", "url", "source"}, signed by ECDSA P-256 over the SHA-256 of the body, with the headers
// Github-Public-Key-Identifier and Github-Public-Key-Signature (base64 of the ASN.1 form). Each credential of the service is
// ended as by Service.RevokeLeaked, recorded as token.leaked, and told to Notify.
//
// It answers 200 with the program's feedback, {"token_hash", "token_type", "label": "true_positive"} for each match,
// the same whether the service knows the token or not; 401 when the signature does not fit; 413 for over MaxBody or 10,000 matches; 503 with
// Retry-After when a key or the store could not be reached: the report must come again.
func NewScannerHandler(svc *apitoken.Service, o *ScannerOptions) http.Handler {
	h := &scannerHandler{}
	if o != nil {
		h.o = *o
	}
	if h.o.Keys == nil {
		h.o.Keys = NewGitHubKeys(nil)
	}
	if h.o.MaxBody <= 0 {
		h.o.MaxBody = scannerBody
	}
	h.leaks = newLeaks(svc, h.o.Notify, h.o.Logger)
	return h
}

type scannerHandler struct {
	leaks
	o ScannerOptions
}

// match is one secret that the scanner found.
type match struct {
	Token  string `json:"token"`
	Type   string `json:"type"`
	URL    string `json:"url"`
	Source string `json:"source"`
}

// feedback is what the program takes in return.
type feedback struct {
	Hash  string `json:"token_hash"` // SHA-256 of the token, hex
	Type  string `json:"token_type"`
	Label string `json:"label"`
}

func (h *scannerHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		answer(w, http.StatusMethodNotAllowed, "POST a report")
		return
	}
	body, status := readBody(w, r, h.o.MaxBody)
	if status != 0 {
		answer(w, status, http.StatusText(status))
		return
	}
	ctx, cancel := work(r, "secret-scanner")
	defer cancel()
	switch err := h.signed(ctx, r.Header, body); {
	case errors.Is(err, errUnsigned):
		h.log.Warn("misuse: a report that no scanner has signed", "error", err)
		answer(w, http.StatusUnauthorized, "the signature does not fit")
		return
	case err != nil:
		h.log.Warn("misuse: the scanner's key cannot be had", "error", err)
		answer(w, http.StatusServiceUnavailable, "try again")
		return
	}
	var list []match
	if err := json.Unmarshal(body, &list); err != nil {
		answer(w, http.StatusBadRequest, "not an array of matches")
		return
	}
	if len(list) > scannerMatches {
		answer(w, http.StatusRequestEntityTooLarge, "too many matches")
		return
	}
	failed := error(nil)
	back := make([]feedback, len(list))
	for i, m := range list {
		sum := sha256.Sum256([]byte(m.Token))
		back[i] = feedback{Hash: hex.EncodeToString(sum[:]), Type: m.Type, Label: "true_positive"}
		if m.Token == "" || len(m.Token) > maxTokenText {
			continue
		}
		reason := "found by a secret scanner"
		if m.URL != "" {
			reason += " at " + printable(m.URL, 200)
		}
		leak := Leak{By: "scanner", Type: cut(m.Type, 256), URL: m.URL, Source: cut(m.Source, 256)}
		if err := h.revoke(ctx, m.Token, reason, leak); err != nil {
			failed = err // the others are revoked all the same
		}
	}
	if failed != nil {
		h.log.Error("misuse: a leaked token could not be revoked", "error", failed)
		answer(w, http.StatusServiceUnavailable, "try again")
		return
	}
	out, err := json.Marshal(back)
	if err != nil {
		answer(w, http.StatusInternalServerError, "")
		return
	}
	answer(w, http.StatusOK, string(out))
}

// errUnsigned says that whoever sent a report is not the scanner.
var errUnsigned = errors.New("the signature does not fit")

// signed checks the signature over the body as it came.
func (h *scannerHandler) signed(ctx context.Context, header http.Header, body []byte) error {
	ids, sigs := header["Github-Public-Key-Identifier"], header["Github-Public-Key-Signature"]
	if len(ids) != 1 || len(sigs) != 1 || ids[0] == "" || len(ids[0]) > maxKeyID || len(sigs[0]) > maxKeyID {
		return errUnsigned
	}
	sig, err := base64.StdEncoding.DecodeString(sigs[0])
	if err != nil {
		return errUnsigned
	}
	key, err := h.o.Keys.ScannerKey(ctx, ids[0])
	switch {
	case errors.Is(err, apitoken.ErrNotFound):
		return fmt.Errorf("%w: unknown key", errUnsigned)
	case err != nil:
		return err
	case key == nil || key.Curve != elliptic.P256():
		return fmt.Errorf("%w: not a P-256 key", errUnsigned)
	}
	if sum := sha256.Sum256(body); !ecdsa.VerifyASN1(key, sum[:], sig) {
		return errUnsigned
	}
	return nil
}

// readBody reads a body of at most most bytes. A status that is not zero is the answer.
func readBody(w http.ResponseWriter, r *http.Request, most int64) ([]byte, int) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	if err == nil {
		return body, 0
	}
	if e := (*http.MaxBytesError)(nil); errors.As(err, &e) {
		return nil, http.StatusRequestEntityTooLarge
	}
	return nil, http.StatusBadRequest
}

// printable makes a text of n bytes at most that shows in a log as what it is.
func printable(s string, n int) string {
	q := strconv.QuoteToASCII(s)
	return cut(q[1:len(q)-1], n)
}

// GitHubKeysOptions are the choices of NewGitHubKeys.
type GitHubKeysOptions struct {
	URL string // empty: https://api.github.com/meta/public_keys/secret_scanning
	// Client fetches; nil: one with a timeout of 5 s that follows redirects to https only. Its Transport is the place for a
	// token against GitHub's rate limit.
	Client *http.Client
	Now    func() time.Time // nil: time.Now
}

const (
	gitHubKeysURL = "https://api.github.com/meta/public_keys/secret_scanning"
	keysTimeout   = 5 * time.Second
	keysBytes     = 256 << 10
	keysMost      = 64
	keysFresh     = time.Hour        // after which a key is asked for again
	keysStale     = 24 * time.Hour   // for which it is believed while nobody answers
	keysPause     = 15 * time.Second // between two requests, whoever makes up key names
)

// NewGitHubKeys looks keys up where GitHub publishes them: {"public_keys": [{"key_identifier", "key"}]}, each key in PEM. Keys are
// kept for an hour, and for a day while the endpoint does not answer; it is asked every 15 s at most.
func NewGitHubKeys(o *GitHubKeysOptions) ScannerKeys {
	k := &gitHubKeys{turn: make(chan struct{}, 1)}
	if o != nil {
		k.o = *o
	}
	if k.o.URL == "" {
		k.o.URL = gitHubKeysURL
	}
	if k.o.Client == nil {
		k.o.Client = &http.Client{Timeout: keysTimeout, CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if req.URL.Scheme != "https" || len(via) > 3 {
				return errors.New("scanner keys: a redirect that is not followed")
			}
			return nil
		}}
	}
	if k.o.Now == nil {
		k.o.Now = time.Now
	}
	k.seen.Store(&keySet{})
	return k
}

type gitHubKeys struct {
	o    GitHubKeysOptions
	turn chan struct{} // held by the one who fetches
	seen atomic.Pointer[keySet]
}

// keySet is what the endpoint has said. It never changes.
type keySet struct {
	keys  map[string]*ecdsa.PublicKey
	at    time.Time // of keys; zero: never
	tried time.Time
	err   error // of the last try
}

func (k *gitHubKeys) ScannerKey(ctx context.Context, id string) (*ecdsa.PublicKey, error) {
	now := k.o.Now()
	if key := k.seen.Load().keys[id]; key != nil && within(now, k.seen.Load().at, keysFresh) {
		return key, nil
	}
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s := k.seen.Load()
	if now = k.o.Now(); !within(now, s.tried, keysPause) {
		s = k.fetch(ctx, s, now)
		k.seen.Store(s)
	}
	if key := s.keys[id]; key != nil && within(now, s.at, keysStale) {
		return key, nil
	}
	if s.err != nil {
		return nil, s.err
	}
	return nil, &apitoken.Error{Code: apitoken.ErrNotFound, Detail: "no such scanner key"}
}

// within says that no more than d has passed since then, by a clock that may be put back.
func within(now, then time.Time, d time.Duration) bool {
	age := now.Sub(then)
	return !then.IsZero() && age >= 0 && age < d
}

// fetch asks the endpoint; what was known before stays when it does not answer.
func (k *gitHubKeys) fetch(ctx context.Context, old *keySet, now time.Time) *keySet {
	keys, err := k.ask(ctx)
	if err != nil {
		return &keySet{keys: old.keys, at: old.at, tried: now, err: err}
	}
	return &keySet{keys: keys, at: now, tried: now}
}

func (k *gitHubKeys) ask(ctx context.Context) (map[string]*ecdsa.PublicKey, error) {
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.o.URL, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	res, err := k.o.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("scanner keys: %s", res.Status)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, keysBytes+1))
	if err != nil {
		return nil, err
	}
	if len(body) > keysBytes {
		return nil, fmt.Errorf("scanner keys: over %d bytes", keysBytes)
	}
	var doc struct {
		Keys []struct {
			ID  string `json:"key_identifier"`
			Key string `json:"key"`
		} `json:"public_keys"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, fmt.Errorf("scanner keys: %w", err)
	}
	keys := make(map[string]*ecdsa.PublicKey, len(doc.Keys))
	for _, x := range doc.Keys[:min(len(doc.Keys), keysMost)] {
		block, _ := pem.Decode([]byte(x.Key))
		if block == nil || x.ID == "" {
			continue // of another kind than we know
		}
		pub, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			continue
		}
		if key, ok := pub.(*ecdsa.PublicKey); ok && key.Curve == elliptic.P256() {
			keys[x.ID] = key
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("scanner keys: none that can be used")
	}
	return keys, nil
}
