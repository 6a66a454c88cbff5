package apitoken

import (
	"strconv"
	"strings"

	"github.com/apitoken-go/apitoken/store"
)

// positions are the two places in the order of state changes that a token carries. birth is where the order
// stood when the identity was confirmed: the grant's, unchanged by refresh and exchange. view is what
// the issuer had seen when it signed this token. Comparing these with a rule's position, and not times with
// times, makes the verdict independent of clocks and of the order in which rules arrive.
type positions struct {
	birth, view store.Position
}

// String is the form of the pos claim: history.birth.view in hexadecimal, with the birth's own history behind
// it where a restore lies between the two. Positions have up to 63 bits, more than a JSON number carries.
func (p positions) String() string {
	b := make([]byte, 0, 64)
	b = strconv.AppendUint(b, p.view.History, 16)
	b = append(b, '.')
	b = strconv.AppendInt(b, p.birth.N, 16)
	b = append(b, '.')
	b = strconv.AppendInt(b, p.view.N, 16)
	if p.birth.History != p.view.History {
		b = append(b, '.')
		b = strconv.AppendUint(b, p.birth.History, 16)
	}
	return string(b)
}

// parsePositions reads the claim back; only what String makes is taken.
func parsePositions(s string) (positions, bool) {
	var p positions
	if len(s) > 68 {
		return p, false
	}
	hist, rest, ok1 := strings.Cut(s, ".")
	birth, rest, ok2 := strings.Cut(rest, ".")
	seen, old, ok3 := strings.Cut(rest, ".")
	h, e1 := strconv.ParseUint(hist, 16, 64)
	b, e2 := strconv.ParseInt(birth, 16, 64)
	v, e3 := strconv.ParseInt(seen, 16, 64)
	if !ok1 || !ok2 || e1 != nil || e2 != nil || e3 != nil || b < 0 || b > v {
		return p, false
	}
	p = positions{birth: store.Position{History: h, N: b}, view: store.Position{History: h, N: v}}
	if ok3 {
		oh, err := strconv.ParseUint(old, 16, 64)
		if err != nil || oh == h {
			return positions{}, false
		}
		p.birth.History = oh
	}
	return p, true
}
