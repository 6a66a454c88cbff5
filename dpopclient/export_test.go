package dpopclient

// ProverOf lets tests start a second process with the first one's key.
func ProverOf(c *Client) *Prover { return c.c.Prover }
