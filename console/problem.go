package console

import (
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
)

// problem is the page that answers instead of the one that was asked for.
type problem struct {
	*page
	status  int
	Alert   bool
	Heading template.HTML
	Lines   []template.HTML
	// Action and Fields are the same form once more.
	Action string
	Fields [][2]string
	Go     string // where to go on, such as a sign-in
	GoText template.HTML
	Back   string
	// BackText says where Back leads.
	BackText template.HTML
	Hint     template.HTML
}

var (
	sayBackKeys     = say("Back to API keys")
	sayBackSessions = say("Back to sessions")
	sayBackAdmin    = say("Back to the overview")
	sayBack         = say("Back")

	sayNotFound     = say("There is nothing here")
	sayNotFoundWhy  = say("It never was, it is not yours, or it ended long ago.")
	sayNoKey        = say("There is no such key")
	sayNoKeyWhy     = say("It never was, it is not yours, or it ended more than 30 days ago.")
	sayRole         = say("This is for operators")
	sayRoleReader   = say("Looking at it needs the role `reader`, which whoever runs this service gives.")
	sayRoleOperator = say("Changing it needs the role `operator`, which whoever runs this service gives. Nothing was changed.")
	sayForeign      = say("The form came from another site")
	sayForeignWhy   = say("Nothing was changed. Open the page here and send the form from it.")
	sayDenied       = say("This is not allowed")
	sayDeniedWhy    = say("The service refused it for you. Nothing was changed.")
	sayReauth       = say("Confirm that it is you")
	sayReauthWhy    = say("What you are about to do needs a sign-in that is not older than %s. Nothing was changed.")
	sayConfirm      = say("Confirm")
	saySignIn       = say("Sign in")
	sayNoToken      = say("You are not signed in")
	sayNoTokenWhy   = say("Nothing was changed. Sign in, then open the page again.")
	sayLimited      = say("Not now")
	sayLimitedWhy   = say("A limit was reached, or the same form is being worked on. Try again in %s.")
	sayTooMany      = say("You have as many API keys as you may have. Revoke one that you no longer need.")
	sayBadForm      = say("The form cannot be read")
	sayBadFormWhy   = say("It is too long or damaged. Nothing was changed.")
	sayRefused      = say("The service did not take it")
	sayRefusedWhy   = say("What was sent contradicts itself, or no longer fits what is there. Nothing was changed.")
	sayUnavailable  = say("The token store does not answer")
	sayNothingLost  = say("Nothing was lost. Keys and sessions that are known here keep working; changes cannot be made now.")
	sayUnknown      = say("It is not known whether **%s** was written. Sending it again is safe.")
	sayInForce      = say("What it ends is refused in this process already, and this process keeps trying to write it. Other processes may not know it yet.")
	sayPasteAgain   = say("What you pasted was not kept: paste it again.")
	sayRetry        = say("%s, retry after %s.")
	sayRequest      = say("%s, retry after %s. Request `%s`")
	sayInternal     = say("Something went wrong")
	sayInternalWhy  = say("It is not your doing. Whoever runs this service finds more in its log.")
)

// fail answers with a page that says what is wrong and what to do. What it says is a text of ours, never the error's.
func (c *Console) fail(w http.ResponseWriter, r *http.Request, p *page, err error) {
	q := &problem{page: p, Back: r.Referer()}
	q.Back, q.BackText = c.back(p)
	var own *apitoken.Error
	retry := 2 * time.Second
	if errors.As(err, &own) && own.RetryAfter > 0 {
		retry = own.RetryAfter.Round(time.Second)
	}
	var role errRole
	var half *unwritten
	switch {
	case errors.As(err, &half):
		q.unavailable(r, half, retry)
	case errors.As(err, &role) && Role(role) == Operator:
		q.say(http.StatusForbidden, sayRole, sayRoleOperator)
	case errors.As(err, &role):
		q.say(http.StatusForbidden, sayRole, sayRoleReader)
	case errors.Is(err, errForeign):
		q.say(http.StatusForbidden, sayForeign, sayForeignWhy)
	case errors.Is(err, errBody):
		q.say(http.StatusBadRequest, sayBadForm, sayBadFormWhy)
	case errors.Is(err, errStale):
		q.say(http.StatusForbidden, sayReauth)
		q.Lines = append(q.Lines, p.text(sayReauthWhy, p.Length(c.o.Fresh)))
		q.Go, q.GoText = c.o.Reauth+url.QueryEscape(q.Back), p.text(sayConfirm)
	case errors.Is(err, apitoken.ErrNoToken):
		q.say(http.StatusUnauthorized, sayNoToken, sayNoTokenWhy)
		q.Back = ""
		if c.o.SignIn != "" {
			q.Go, q.GoText = c.o.SignIn+url.QueryEscape(c.url("/")), p.text(saySignIn)
		}
	case errors.Is(err, apitoken.ErrNotFound) && strings.HasPrefix(p.path, "/keys/"):
		q.say(http.StatusNotFound, sayNoKey, sayNoKeyWhy)
	case errors.Is(err, apitoken.ErrNotFound):
		q.say(http.StatusNotFound, sayNotFound, sayNotFoundWhy)
	case errors.Is(err, apitoken.ErrLimited):
		q.say(http.StatusTooManyRequests, sayLimited)
		if own != nil && own.RetryAfter == 0 && strings.HasPrefix(p.path, "/keys") {
			q.Lines = append(q.Lines, p.text(sayTooMany))
			break
		}
		q.Lines = append(q.Lines, p.text(sayLimitedWhy, p.Length(retry)))
		w.Header().Set("Retry-After", strconv.Itoa(int(max(retry, time.Second)/time.Second)))
	case errors.Is(err, apitoken.ErrUnavailable):
		q.unavailable(r, nil, retry)
	case errors.Is(err, apitoken.ErrInvalidToken), errors.Is(err, apitoken.ErrInvalidGrant):
		q.say(http.StatusUnauthorized, sayNoToken, sayNoTokenWhy)
	case errors.Is(err, apitoken.ErrDenied), errors.Is(err, apitoken.ErrInvalidScope), errors.Is(err, apitoken.ErrInsufficientScope):
		q.say(http.StatusForbidden, sayDenied, sayDeniedWhy)
	case errors.Is(err, apitoken.ErrInvalidRequest):
		q.say(http.StatusUnprocessableEntity, sayRefused, sayRefusedWhy)
	default:
		q.say(http.StatusInternalServerError, sayInternal, sayInternalWhy)
	}
	if q.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(int(max(retry, time.Second)/time.Second)))
	}
	p.title = q.Heading
	if err := p.show(w, q.status, "problem", q); err != nil {
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
	}
}

func (q *problem) say(status int, heading string, lines ...string) {
	q.status, q.Heading = status, q.text(heading)
	for _, l := range lines {
		q.Lines = append(q.Lines, q.text(l))
	}
}

// unwritten is a form whose outcome is not known.
type unwritten struct {
	What template.HTML // that the form asks for
	// InForce says that what is to end is refused here by now.
	InForce bool
	// Pasted says that the form held what is not to be repeated.
	Pasted bool
	err    error
}

func (u *unwritten) Error() string { return "console: the outcome is not known: " + u.err.Error() }
func (u *unwritten) Unwrap() error { return u.err }

// orUnwritten makes of an error that leaves the outcome open one that offers the same form again.
func orUnwritten(err error, u unwritten) error {
	if err == nil || !errors.Is(err, apitoken.ErrUnavailable) {
		return err
	}
	u.err = err
	return &u
}

// unavailable offers the same form once more, with the same values and so with the same once.
func (q *problem) unavailable(r *http.Request, u *unwritten, retry time.Duration) {
	q.say(http.StatusServiceUnavailable, sayUnavailable, sayNothingLost)
	q.Alert = true
	q.Hint = q.text(sayRetry, "503", q.Length(retry))
	if id := apitoken.OriginOf(r.Context()).RequestID; id != "" {
		q.Hint = q.text(sayRequest, "503", q.Length(retry), id)
	}
	if u == nil {
		return
	}
	q.Lines = append(q.Lines, q.text(sayUnknown, u.What))
	if u.InForce {
		q.Lines = append(q.Lines, q.text(sayInForce))
	}
	if u.Pasted {
		q.Lines = append(q.Lines, q.text(sayPasteAgain))
		return
	}
	q.Action = q.c.url(q.path)
	for _, name := range slices.Sorted(keysOfForm(r.PostForm)) {
		for _, v := range r.PostForm[name] {
			q.Fields = append(q.Fields, [2]string{name, v})
		}
	}
}

func keysOfForm(v url.Values) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range v {
			if !yield(k) {
				return
			}
		}
	}
}

// back is the list to which a page belongs.
func (c *Console) back(p *page) (string, template.HTML) {
	switch {
	case strings.HasPrefix(p.path, "/keys") && p.HasSelf():
		return c.url("/keys"), p.text(sayBackKeys)
	case strings.HasPrefix(p.path, "/sessions") && p.HasSelf():
		return c.url("/sessions"), p.text(sayBackSessions)
	case strings.HasPrefix(p.path, "/admin") && p.HasAdmin():
		return c.url("/admin"), p.text(sayBackAdmin)
	}
	return c.url("/"), p.text(sayBack)
}
