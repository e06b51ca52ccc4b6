"""Training of one network by one or more ranks, each a process of its own:

process      reads an assignment from stdin, trains, writes events to stdout
assignment   what a rank is given; `events`: what it reports
loop         begin or resume, train, validate, save
step         one step of the optimiser, `adam`; `objective`: the loss, and the rating on validation stars
schedule     learning rate and KL weight over the budget; `stopping`: best weights and patience
batches      partition files to shuffled batches; `order`: of a pass; `codes`: how stars are held
validation   the validation stars: found by the workers, read by every rank
group        the ranks that train one network together; `meeting`: how they find each other
checkpoint, metrics, tensorboard   what training writes on the way
search       candidates of an architecture search, and the record of it (tune.json)
"""
