package oauthhttp

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/granttype"
	"github.com/apitoken-go/apitoken/internal/source"
	"github.com/apitoken-go/apitoken/internal/throttle"
	"github.com/apitoken-go/apitoken/store"
)

// The device flow (RFC 8628): a device without a browser shows a short code, its user types that into the host's page
// elsewhere, and the device asks until he has decided. The device alone holds its code; the store holds a hash.

const (
	userAlphabet  = "BCDFGHJKLMNPQRSTVWXZ" // no vowels, so that no words come of it (RFC 8628 §6.1)
	userLetters   = 8                      // 34 bits, behind a throttle
	deviceForget  = 10 * time.Minute       // an expired code is told from an unknown one for so long
	deviceAgain   = time.Minute            // a device whose answer was lost asks again, more slowly (RFC 8628 §3.5)
	pollInterval  = 5                      // s
	pollSlower    = 5                      // s, added for each poll that came too early
	pollSlowest   = 60
	pollTolerance = 500 * time.Millisecond // of the network
)

// deviceNote is a device that waits.
type deviceNote struct {
	V         int             `json:"v"`
	Client    string          `json:"client"`
	Scopes    apitoken.Scopes `json:"scopes,omitempty"`
	Resources []string        `json:"aud,omitempty"`
	Details   json.RawMessage `json:"details,omitempty"`
	UserCode  string          `json:"user"`
	Until     int64           `json:"until"` // Unix ms
	State     string          `json:"state"` // "", "claimed", "approved", "denied"
	Subject   string          `json:"sub,omitempty"`
	Interval  int64           `json:"interval"` // s
	Polled    int64           `json:"polled,omitempty"`
}

func deviceName(sum string) string { return "device\x00" + sum }
func userName(code string) string  { return "user\x00" + code }

func readDevice(n *apitoken.Note) (d deviceNote, err error) {
	if err = json.Unmarshal(n.Data, &d); err != nil || d.V != 1 {
		return d, &apitoken.Error{Code: apitoken.ErrUnavailable, Detail: "a device's record is damaged or of a newer version", Cause: err}
	}
	return d, nil
}

func (d *deviceNote) write(n *apitoken.Note) (err error) {
	n.Data, err = json.Marshal(d)
	return err
}

// DeviceAuthorization is the device authorization endpoint (RFC 8628 §3.1).
func (h *Handler) DeviceAuthorization() http.Handler {
	if h.o.DevicePage == "" {
		return http.NotFoundHandler()
	}
	return h.endpoint(true, "POST", func(w http.ResponseWriter, r *http.Request) (failed error) {
		r = r.WithContext(h.svc.Begin(r.Context())) // the request ends with what is revoked of its client from here on
		f, err := h.readForm(w, r)
		if err != nil {
			return err
		}
		c, err := h.client(r, f, devicePath)
		if err != nil {
			return err
		}
		defer func() { failed = h.denied(r.Context(), c.auth, "device", failed) }()
		if err := c.may(granttype.DeviceCode); err != nil {
			return err
		}
		req, details, err := h.ask(r, &tokenRequest{form: f, caller: c})
		if err != nil {
			return err
		}
		if req.Scopes, err = h.scopesOf(f, &c.Client); err != nil { // a user decides here too, as at the authorization endpoint
			return err
		}
		if err := h.adapter.Check(r.Context(), req); err != nil {
			return err
		}
		until := h.now().Add(h.o.DeviceLifetime)
		d := deviceNote{V: 1, Client: c.ID, Scopes: req.Scopes, Resources: req.Audiences, Until: until.UnixMilli(), Interval: pollInterval}
		if len(details) > 0 {
			if d.Details, err = marshalDetails(details); err != nil {
				return err
			}
		}
		code := rand.Text() + rand.Text()
		sum := sha256.Sum256([]byte(code))
		id := hex.EncodeToString(sum[:])
		if d.UserCode, err = h.userCode(r.Context(), id, until); err != nil {
			return err
		}
		err = h.adapter.ChangeNote(r.Context(), deviceName(id), func(n *apitoken.Note) error {
			n.Expires, n.Client = until.Add(deviceForget), c.ID
			return d.write(n)
		})
		if err != nil {
			return err
		}
		return h.answer(w, r, http.StatusOK, struct {
			DeviceCode string `json:"device_code"`
			UserCode   string `json:"user_code"`
			Page       string `json:"verification_uri"`
			Complete   string `json:"verification_uri_complete"`
			Expires    int64  `json:"expires_in"`
			Interval   int64  `json:"interval"`
		}{code, spell(d.UserCode), h.o.DevicePage, h.o.DevicePage + "?" + url.Values{"user_code": {spell(d.UserCode)}}.Encode(), int64(h.o.DeviceLifetime.Seconds()), d.Interval})
	})
}

var errDeviceExpired = bad("expired_token", "The device code has expired.")

var errTaken = errors.New("oauthhttp: a user code that is in use")

// userCode makes a code that nobody else is shown now, and notes whose it is.
func (h *Handler) userCode(ctx context.Context, id string, until time.Time) (string, error) {
	for range 8 {
		code := newUserCode()
		err := h.adapter.ChangeNote(ctx, userName(code), func(n *apitoken.Note) error {
			if !n.Expires.IsZero() {
				return errTaken
			}
			n.Data, n.Expires = []byte(id), until
			return nil
		})
		if !errors.Is(err, errTaken) {
			return code, err
		}
	}
	return "", &apitoken.Error{Code: apitoken.ErrUnavailable, RetryAfter: time.Second, Detail: "no user code is free"}
}

func newUserCode() string {
	code := make([]byte, 0, userLetters)
	var b [1]byte
	for len(code) < userLetters {
		rand.Read(b[:])
		if int(b[0]) < 256/len(userAlphabet)*len(userAlphabet) { // else some letters came more often
			code = append(code, userAlphabet[int(b[0])%len(userAlphabet)])
		}
	}
	return string(code)
}

// spell writes a user code as people read it.
func spell(code string) string { return code[:userLetters/2] + "-" + code[userLetters/2:] }

// unspell reads what people type.
func unspell(typed string) (string, bool) {
	if len(typed) > 64 {
		return "", false
	}
	var b strings.Builder
	for _, c := range strings.ToUpper(typed) {
		switch {
		case strings.ContainsRune(userAlphabet, c):
			b.WriteRune(c)
		case c == '-' || c == ' ' || c == '.' || c == '_':
		default:
			return "", false
		}
	}
	return b.String(), b.Len() == userLetters
}

// deviceCode is RFC 8628 §3.4: a device asks whether its user has decided.
func (h *Handler) deviceCode(r *http.Request, t *tokenRequest) (*apitoken.Issued, error) {
	code := t.get("device_code")
	if code == "" {
		return nil, invalid("The device_code is missing.")
	}
	unknown := &apitoken.Error{Code: apitoken.ErrInvalidGrant, Detail: "no such device code, or another client's"}
	audiences, err := t.resources()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(code))
	name := deviceName(hex.EncodeToString(sum[:]))
	n, err := h.adapter.Note(r.Context(), name)
	if errors.Is(err, apitoken.ErrNotFound) {
		return nil, unknown
	}
	if err != nil {
		return nil, err
	}
	d, err := readDevice(&n)
	switch {
	case err != nil:
		return nil, err
	case d.Client != t.ID:
		return nil, unknown
	}
	if err := t.prove(); err != nil {
		return nil, err
	}
	switch {
	case d.State == "denied":
		return nil, bad("access_denied", "The user refused.")
	case d.State == "approved":
		// A device whose answer was lost gets it again for a minute; a later use ends what the first one got.
		t.counted = true
		i, err := h.svc.Redeem(r.Context(), apitoken.Redemption{Ticket: code, Auth: t.auth, Audiences: audiences, Binding: t.binding})
		if errors.Is(err, apitoken.ErrInvalidGrant) && h.now().UnixMilli() >= d.Until {
			return nil, errDeviceExpired
		}
		return i, err
	case h.now().UnixMilli() >= d.Until:
		return nil, errDeviceExpired
	}
	return nil, h.paced(r.Context(), name)
}

// paced answers a device that has to wait, slower if it asks too often (RFC 8628 §3.5).
func (h *Handler) paced(ctx context.Context, name string) error {
	pending := bad("authorization_pending", "The user has not decided yet.")
	slower := bad("slow_down", "Ask less often.")
	answer := pending
	err := h.adapter.ChangeNote(ctx, name, func(n *apitoken.Note) error {
		d, err := readDevice(n)
		if err != nil {
			return err
		}
		now := h.now()
		if answer = pending; d.Polled != 0 && now.Sub(time.UnixMilli(d.Polled)) < time.Duration(d.Interval)*time.Second-pollTolerance {
			answer = slower
			if d.Interval >= pollSlowest {
				return slower // a device that does not listen costs no write
			}
			d.Interval += pollSlower
		}
		d.Polled = now.UnixMilli()
		return d.write(n)
	})
	if err != nil && !errors.Is(err, slower) {
		return err
	}
	return answer
}

// DeviceRequest is a device that waits for its user.
type DeviceRequest struct {
	Client    apitoken.Client
	Scopes    apitoken.Scopes // as in Authorization
	Resources []string
	Details   []Detail
	UserCode  string // to be shown beside the device's, for comparison (RFC 8628 §3.3.1)

	sum string // hex SHA-256 of the device code
}

// Device finds the device whose code a user typed, in whatever spelling. apitoken.ErrNotFound: none waits for it;
// apitoken.ErrLimited: too many wrong ones came from this address, the one in ctx by apitoken.WithOrigin.
func (h *Handler) Device(ctx context.Context, userCode string) (*DeviceRequest, error) {
	// A try is counted before it is made: else parallel ones would all find the count where it was.
	from := source.Of(apitoken.OriginOf(ctx).Address)
	if !h.tries.Take(throttle.Name{From: from}, h.now()) {
		return nil, &apitoken.Error{Code: apitoken.ErrLimited, RetryAfter: throttle.Window, Detail: "too many wrong user codes from " + from}
	}
	d, sum, err := h.findDevice(ctx, userCode)
	if !errors.Is(err, apitoken.ErrNotFound) {
		h.tries.GiveBack(throttle.Name{From: from}, h.now())
	}
	if err != nil {
		return nil, err
	}
	c, err := h.svc.Clients.Get(ctx, d.Client)
	if err != nil {
		return nil, err
	}
	x := &DeviceRequest{Client: c, Scopes: d.Scopes, Resources: d.Resources, UserCode: spell(d.UserCode), sum: sum}
	if len(d.Details) > 0 {
		if x.Details, err = parseDetails(d.Details); err != nil {
			return nil, err
		}
	}
	return x, nil
}

func (h *Handler) findDevice(ctx context.Context, typed string) (d deviceNote, sum string, err error) {
	none := &apitoken.Error{Code: apitoken.ErrNotFound, Detail: "no device waits for this user code"}
	code, ok := unspell(typed)
	if !ok {
		return d, "", none
	}
	user, err := h.adapter.Note(ctx, userName(code))
	if err != nil {
		return d, "", err
	}
	n, err := h.adapter.Note(ctx, deviceName(string(user.Data)))
	if err != nil {
		return d, "", err
	}
	if d, err = readDevice(&n); err != nil {
		return d, "", err
	}
	if d.State == "approved" || d.State == "denied" || h.now().UnixMilli() >= d.Until {
		return d, "", none
	}
	return d, string(user.Data), nil
}

// decide changes the state of a device that nobody has decided about.
func (h *Handler) decide(ctx context.Context, x *DeviceRequest, f func(*deviceNote) error) error {
	return h.adapter.ChangeNote(ctx, deviceName(x.sum), func(n *apitoken.Note) error {
		if n.Expires.IsZero() {
			return &apitoken.Error{Code: apitoken.ErrNotFound, Detail: "the device has given up"}
		}
		d, err := readDevice(n)
		if err != nil {
			return err
		}
		if h.now().UnixMilli() >= d.Until {
			return &apitoken.Error{Code: apitoken.ErrNotFound, Detail: "the device code has expired"}
		}
		if err := f(&d); err != nil {
			return err
		}
		return d.write(n)
	})
}

func errNoDevice() error {
	return &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "a DeviceRequest that Handler.Device did not make"}
}

func errDecided() error {
	return &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "somebody has decided about this device already"}
}

// ApproveDevice lets a device have tokens. It may be repeated by the same subject, when its answer was lost.
// apitoken.ErrInvalidRequest: somebody has decided already; apitoken.ErrNotFound: the device has given up.
func (h *Handler) ApproveDevice(ctx context.Context, x *DeviceRequest, a Approval) error {
	if x == nil || x.sum == "" {
		return errNoDevice()
	}
	ctx = h.svc.Begin(ctx)
	// What cannot be approved decides nothing: it is found out before anything is written.
	req, err := a.request(x.Client, x.Scopes, x.Resources)
	if err != nil {
		return err
	}
	if err := h.adapter.Check(ctx, req); err != nil {
		return err
	}
	// Two people who type the same code must not both believe that the device is theirs: whoever claims it first keeps it,
	// whatever becomes of what follows, so that what is prepared for it can only be his.
	var until int64
	var again bool
	err = h.decide(ctx, x, func(d *deviceNote) error {
		if again = d.State == "approved" && d.Subject == a.Subject; again {
			return nil
		}
		if d.State != "" && (d.State != "claimed" || d.Subject != a.Subject) {
			return errDecided()
		}
		d.State, d.Subject, until = "claimed", a.Subject, d.Until
		return nil
	})
	if err != nil || again {
		return err
	}
	t := apitoken.Ticket{Lifetime: max(time.Second, time.UnixMilli(until).Sub(h.now())), Client: x.Client.ID, Again: deviceAgain}
	raw, err := hex.DecodeString(x.sum)
	if err != nil {
		return err
	}
	copy(t.CodeSHA256[:], raw)
	var e *apitoken.Error
	_, err = h.svc.Prepare(ctx, req, t)
	if errors.As(err, &e) && errors.Is(e.Cause, store.ErrConflict) {
		err = nil // it is prepared, by an earlier or a parallel approval of this subject
	}
	if err != nil {
		return err
	}
	return h.decide(ctx, x, func(d *deviceNote) error {
		if d.State != "claimed" && d.State != "approved" {
			return errDecided()
		}
		d.State = "approved"
		return nil
	})
}

// DenyDevice refuses a device. Errors are as of ApproveDevice. The refusal is recorded with the client and the Token in ctx.
func (h *Handler) DenyDevice(ctx context.Context, x *DeviceRequest) error {
	if x == nil || x.sum == "" {
		return errNoDevice()
	}
	err := h.decide(ctx, x, func(d *deviceNote) error {
		if d.State != "" {
			return errDecided()
		}
		d.State = "denied"
		return nil
	})
	if err == nil {
		h.adapter.Refused(ctx, apitoken.ClientAuth{ID: x.Client.ID}, "device", "the host denied the device: access_denied")
	}
	return err
}
