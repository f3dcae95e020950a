-- What others have closed for a server: the reconciler does not ask its engines for it.
CREATE INDEX requests_interrupted ON requests (instance) WHERE finish = 'interrupted';
